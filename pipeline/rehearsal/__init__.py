"""What a release needs from outside, made on this machine; docs/rehearsal.md."""
