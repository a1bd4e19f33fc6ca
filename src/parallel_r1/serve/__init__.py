"""A server with forks, its page, and a chat in the terminal."""
