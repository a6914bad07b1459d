"""Pages that people look at: one HTML file without any network access, with interactive charts."""
