"""Large language models from their `config.json`: readers, graphs of prefill and decode passes, closed forms."""
