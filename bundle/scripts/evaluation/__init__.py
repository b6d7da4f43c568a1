"""From predictions to numbers: metrics per case, statistics over cases, tables, charts."""
