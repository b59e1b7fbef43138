"""Where versions and journals lie: in a folder of this machine or behind any fsspec URL, and how writers and gc agree there."""
