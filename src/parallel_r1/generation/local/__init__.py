"""Generation with a Hugging Face model on this machine."""
