"""A server of one project that speaks Algorithmia's REST API: storage, calls, management, monitoring."""
