"""Version and platform of this stub; `stub_k3s_build.build` puts the real ones in the packed copy."""

VERSION = "v0.0.0+standin"
PLATFORM = "unknown/unknown"
