"""The environment of a call: what a measured tactic depends on besides the call itself."""
