"""Published sets and their graders. Imported only when --tasks names one."""
