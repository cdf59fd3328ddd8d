"""From the files that stages write to a report: statistics, comparisons, sections, renderings."""
