# SPDX-License-Identifier: GPL-2.0-or-later
# Which Python modules come with the package here, and on which packages it depends for it.
ifeq ($(shell python3 -I -c 'import msgspec.json' 2>/dev/null && echo found),)
bundle_msgspec := yes
python_minor := $(shell python3 -c 'import sys; print(sys.version_info.minor)')
bundled_depends := python3 (>= 3.$(python_minor)~), python3 (<< 3.$(shell expr $(python_minor) + 1))
else
bundled_depends := python3-msgspec (>= 0.18)
endif
