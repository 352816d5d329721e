"""The catalogue of algorithms: manifests, versions and parameters."""
