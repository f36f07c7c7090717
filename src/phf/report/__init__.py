"""The page that compares runs. It reads run folders only; nothing calls it but the command line and the demo."""

from phf.report.page import summary_rows, summary_table, write_report

__all__ = ["summary_rows", "summary_table", "write_report"]
