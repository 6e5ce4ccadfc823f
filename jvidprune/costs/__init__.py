"""What will it cost: FLOPs, memory, roofline times, the chips' numbers, and how times are measured here."""
