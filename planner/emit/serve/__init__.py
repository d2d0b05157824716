"""Emits serving deployments for the engines that can run them."""
