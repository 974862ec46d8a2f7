"""The release pipeline of dind-k3s; the stages and their order are in docs/design.md."""
