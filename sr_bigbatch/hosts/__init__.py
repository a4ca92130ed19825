"""Adapters to BasicSR and mmengine: the only modules that import a host. They translate, they do not compute."""
