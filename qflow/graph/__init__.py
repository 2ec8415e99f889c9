"""Graph: what a flow is, as pure values. Nothing here starts a process or knows of torch."""
