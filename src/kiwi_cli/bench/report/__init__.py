"""What a run came to: averages, tables, pages and plots."""
