"""What pipelines read of a run, a file a format: JUnit, GitLab's metrics report, GitHub's summary and annotations."""
