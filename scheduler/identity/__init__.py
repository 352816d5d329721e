"""Who somebody is by a token of an OpenID provider: issuers, their keys, checked tokens."""
