"""What a test sends, and when: plans, schedules and rows."""
