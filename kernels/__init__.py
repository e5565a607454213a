"""Numerical kernels: the formulas that the backends share or compile, one file a topic.

This folder is installed as ``nnbackend.kernels``. A kernel knows arrays and numbers only:
no layers, no models, no devices.
"""
