"""The one embedded database: outbox, dead letters, ledger, context cache, history, gates. No secrets."""
