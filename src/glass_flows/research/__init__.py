"""The experiments behind the documentation: training of the bundled models, tables, figures."""
