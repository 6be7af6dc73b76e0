"""The report: the metrics of a run as one self-contained HTML page. Never imports torch."""

from exoalign.report.page import write_page

__all__ = ["write_page"]
