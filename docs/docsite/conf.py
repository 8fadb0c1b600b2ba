# Settings of Sphinx for the site that tests/tooling/docs.py puts together: the pages of docs/ and the reference that antsibull-docs writes.
# No intersphinx: the site can be built where nothing but package registries can be reached, and nothing in it needs another site's index.

project = "meshops.istio_egress"
copyright = "meshops.istio_egress contributors"
html_title = html_short_title = "meshops.istio_egress"

extensions = ["myst_parser", "sphinx_antsibull_ext"]
myst_heading_anchors = 3
highlight_language = "YAML+Jinja"
pygments_style = "ansible"
default_role = "any"
nitpicky = True

html_theme = "sphinx_ansible_theme"
html_show_sphinx = False
html_use_index = False
html_copy_source = False
