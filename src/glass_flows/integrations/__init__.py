"""The edge to other libraries; each is imported only when its subpackage is."""
