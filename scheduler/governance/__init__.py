"""Who may use which data, where and for what: data sets, grants and the one decision about them."""
