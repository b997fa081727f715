"""One self-contained HTML page: its parts, its charts, its template."""
