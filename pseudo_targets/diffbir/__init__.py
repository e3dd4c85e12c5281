"""DiffBIR (Lin et al. 2024) at its published sizes: published files, networks, sampling."""
