"""What modelfs costs, measured: `make bench-versions`. The figures are in docs/PERFORMANCE.md."""
