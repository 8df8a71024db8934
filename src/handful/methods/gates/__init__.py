"""FineGates as published, pruning by learned gates, and what both need."""
