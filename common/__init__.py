"""What every package may use, and what uses none of them: errors, addresses, memory, batches."""
