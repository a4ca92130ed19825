"""Adapters to BasicSR and mmengine: the only modules that import a host. They translate, they do not compute.

Who imports one of them uses a host. Registering first, in the one order that works, keeps an adapter from being imported
by the registration in the middle of its own import.
"""
from sr_bigbatch.registration import register

register()
