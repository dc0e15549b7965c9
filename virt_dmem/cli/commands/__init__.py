# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of ``virt-dmem``, a module each; ``cli.registry`` lists them.

A module declares its commands as ``COMMANDS``, and the types of their ``--json`` answers as plain classes whose
annotations ``json_schema`` evaluates. Importing it must be cheap: what only running needs is imported in ``run``.
"""
