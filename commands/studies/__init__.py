"""Members, councils and reports of a study: its file, its runs, its page."""
