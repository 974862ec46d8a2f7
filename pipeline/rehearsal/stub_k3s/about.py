"""Version and platform of this stub, which `stub_k3s_build.build` sets in the packed copy."""

VERSION = "v0.0.0+standin"
PLATFORM = "unknown/unknown"
