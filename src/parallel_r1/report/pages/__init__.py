"""Pages for a browser: the report of a run, answers as timelines, a comparison. Every page is one file."""
