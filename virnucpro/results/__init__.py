"""Results in files: tables and the published program's two files."""
