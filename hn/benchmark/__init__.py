"""What a step costs: time, memory, operations, beside what other trainers do for the same step."""
