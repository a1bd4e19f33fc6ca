"""Problems and verdicts."""
