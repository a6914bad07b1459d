"""Which customers of a phone company will leave: categories, times, labels and a decision."""
