# SPDX-License-Identifier: GPL-2.0-or-later

PREFIX ?= /usr
DESTDIR ?=
BENCH_OUT ?= build/bench
RELEASE ?= bookworm trixie
DEBIAN ?= bookworm trixie trixie-backports

python := .venv/bin/python
pytest := $(python) -m pytest --timeout=900 --durations=10
# with RECORD=1 a run that passed is added to docs/reference/runs.json
ifdef RECORD
export PYTEST_ADDOPTS += -p tests.rig.run_record
endif
# one more than CPUs, as a third of their time they wait; tests/rig/workers.py says how they share the tests
workers := -n $(shell cpus=$$(nproc); echo $$((cpus < 4 ? cpus + 1 : 4)))
# a host for each file of tests, two at a time where there is the memory; by name: the first takes longest
lab = $(pytest) -n $(shell awk '/MemAvailable/ { print ($$2 > 18000000) + 1 }' /proc/meminfo) --dist loadfile --no-loadscope-reorder tests/lab
sphinx := .cache/sphinx/bin/sphinx-build
ansible := .cache/ansible/bin/ansible-lint
programs := virt_dmem/native/virt-dmem-prefault virt_dmem/native/virt-dmem-hook
shell_scripts := hooks/qemu.d/50-virt-dmem hooks/vdsm/50_virt_dmem $(wildcard hooks/*/*.sh) bench/compare $(wildcard packaging/*.sh) $(wildcard tests/lab/openstack/*.sh) .ci/run
python_code := virt_dmem tests bench tools docs hatch_build.py hooks/kubevirt

.PHONY: help setup plots bench demo test test-unit test-libvirt test-numa test-releases lab lab-large lab-arm64 module-all test-migration fleet lab-shell lint docs html deb repo rpm ansible test-packages test-package test-booted test-selinux install uninstall cockpit cockpit-install cockpit-uninstall test-cockpit clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  %-18s %s\n", $$1, $$2 }'

setup: ## Prepare for development: missing Debian packages (as root), .venv, the C programs
	@packaging/setup.sh tests
	@$(MAKE) --no-print-directory --silent $(programs)

$(programs): virt_dmem/native/virt-dmem-%: virt_dmem/native/%.c virt_dmem/native/build.py virt_dmem/__init__.py
	@$(python) -m virt_dmem.native.build virt-dmem-$*

plots: setup
	@$(python) -m pip install --quiet --no-build-isolation --editable '.[bench]'

bench: plots ## Run all benchmarks, or one (BENCH=start); results go to BENCH_OUT=build/bench
	@$(python) -m bench --out '$(BENCH_OUT)' $(BENCH)

demo: setup ## Boot a guest from a pool of huge pages and show the savings (BACKEND=dmemfs: without struct pages)
	@BACKEND='$(BACKEND)' $(python) -m tools.demo

test: plots ## Run all tests, the lab's too; all but those of tests/unit need root
	$(pytest) $(workers) tests/unit tests/libvirt tests/numa
	$(lab)

test-unit: plots ## Run the tests that need no libvirt
	$(pytest) $(workers) tests/unit

test-libvirt: setup ## Run the tests with a libvirtd of their own
	$(pytest) $(workers) tests/libvirt

test-numa: setup ## Run the tests on a machine with three NUMA nodes, which QEMU emulates
	$(pytest) tests/numa

test-releases: setup ## Run all tests but the lab's in a root of each Debian release (DEBIAN=trixie: of one)
	@for release in $(DEBIAN); do \
		echo "== Debian $$release"; $(python) -m tests.lab.in_root $$release || failed="$$failed $$release"; \
	done; test -z "$$failed" || { echo "failed on:$$failed"; exit 1; }

lab: setup ## Run the tests on a whole Debian host, booted in QEMU (LAB_SUITE=bookworm: on Debian 12)
	$(lab)

lab-large: setup ## Measure there what 320 GiB of guest memory cost a host
	$(pytest) tests/lab/large_host.py

lab-arm64: setup ## Run the product on a whole Debian 13 host of arm64, which QEMU emulates, with KVM guests inside
	$(pytest) tests/lab/arm64.py

module-all: setup ## Build the module for all supported kernels, of arm64 too, and run its checks on each
	$(pytest) tests/lab/kernels.py

test-migration: setup ## Migrate a guest between hosts of Debian 12, 13 and 13 with backports, in each direction
	$(pytest) tests/lab/migration.py

fleet: setup ## Run servers of a real nova there: OpenStack from Debian's packages on a host with a pool
	@$(python) -m pip install --quiet grpcio grpcio-tools
	$(pytest) tests/unit/kubevirt_protocol.py tests/lab/openstack/story.py tests/lab/openstack/two_hosts.py tests/lab/openstack/start_times.py
	FLEET_BACKEND=dmemfs $(pytest) tests/lab/openstack/story.py tests/lab/openstack/two_hosts.py

lab-shell: setup ## Boot that host with its console on this terminal
	@$(python) -m tests.lab.machine

lint: setup ## Run ruff, mypy and shellcheck
	$(python) -m ruff check $(python_code)
	$(python) -m ruff format --check $(python_code)
	$(python) -m mypy
	shellcheck $(shell_scripts)

docs: setup ## Generate the documents that come from the code
	$(python) docs/generate.py

$(sphinx): docs/html/requirements.txt
	@python3 -m venv --clear .cache/sphinx
	@.cache/sphinx/bin/python -m pip install --quiet --requirement docs/html/requirements.txt
	@touch $@

html: $(sphinx) ## Make HTML of all documents and manual pages, with a search, in build/html
	@$(sphinx) --quiet --fail-on-warning --keep-going --conf-dir docs/html --doctree-dir build/doctrees . build/html
	@echo 'build/html/index.html'

deb: cockpit setup ## Build the Debian packages, for each release in a root of it (RELEASE=trixie: for one)
	packaging/deb.sh inputs $(RELEASE)
	packaging/deb.sh build $(RELEASE)
	packaging/deb.sh lint $(RELEASE)

repo: ## Make an apt repository of them (REPO_URI=, REPO_KEY=)
	packaging/repo.sh

rpm: setup ## Build the RPMs with Debian's rpmbuild, and check them with its rpmlint
	packaging/rpm.sh inputs
	packaging/rpm.sh build
	packaging/rpm.sh lint

$(ansible): packaging/ansible/requirements.txt
	@python3 -m venv --clear .cache/ansible
	@.cache/ansible/bin/python -m pip install --quiet --requirement packaging/ansible/requirements.txt
	@touch $@

ansible: $(ansible) ## Have ansible-lint look at the Ansible role
	cd packaging/ansible && PATH="$(CURDIR)/.cache/ansible/bin:$$PATH" ANSIBLE_HOME='$(CURDIR)/.cache/ansible/home' ansible-lint

test-packages: deb rpm ansible ## Build them again for the same bytes; install, upgrade, remove and purge them
	packaging/deb.sh again $(RELEASE)
	packaging/rpm.sh install
	case '$(RELEASE)' in *trixie*) packaging/rpm.sh compare ;; esac
	@$(MAKE) --no-print-directory repo
	RELEASE='$(RELEASE)' $(pytest) tests/packages

test-package: cockpit setup ## Build the packages for Debian 13 in the lab's root, install and remove them: the short one
	root=$$($(python) -m tests.packages.shared_root trixie) && \
	export PACKAGES_ROOT="$$(echo "$$root" | tail -n 1)" RELEASE=trixie && \
	packaging/deb.sh inputs && packaging/deb.sh build trixie && packaging/deb.sh lint trixie && packaging/repo.sh && \
	$(pytest) tests/packages/test_debian.py -k 'not kernel and not module and not cockpit'

test-booted: deb ## Install, upgrade and remove the packages on a whole host of each release, with KVM guests
	@$(MAKE) --no-print-directory repo
	RELEASE='$(RELEASE)' $(pytest) tests/packages/booted_host.py

test-selinux: setup ## Install the package for Debian 12 on a whole host of it where SELinux is enforcing
	$(MAKE) --no-print-directory deb RELEASE=bookworm
	@$(MAKE) --no-print-directory repo
	$(pytest) tests/packages/selinux.py

install: ## Install for this host (PREFIX=/usr, DESTDIR= for packagers), with what that needs
	@packaging/setup.sh install
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' packaging/install.sh

uninstall: ## Remove the installed files
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' packaging/uninstall.sh

cockpit: ## Build the page for Cockpit into build/cockpit (needs node and npm)
	packaging/cockpit.sh build

cockpit-install: ## Install that page for this host (PREFIX=/usr, DESTDIR= for packagers)
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' packaging/cockpit.sh install

cockpit-uninstall: ## Remove that page
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' packaging/cockpit.sh uninstall

test-cockpit: ## Use that page, from its package, as an operator does: with Debian 13's Cockpit and Chromium in a container
	@$(MAKE) --no-print-directory deb RELEASE=trixie
	@$(MAKE) --no-print-directory repo
	$(pytest) tests/lab/cockpit/story.py tests/lab/cockpit/several_nodes.py

clean: ## Remove build products; keep .venv and .cache
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis $(programs)
	find virt_dmem tests bench tools -name __pycache__ -type d -prune -exec rm -rf {} +
