# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the part of the story that there is always time for: servers are created, refused, rebooted and deleted."""

from tests.lab.openstack import story

test_what_the_scheduler_may_give_is_the_pool = story.test_what_the_scheduler_may_give_is_the_pool
test_a_server_is_adopted_and_runs_with_its_memory_from_the_pool = (
    story.test_a_server_is_adopted_and_runs_with_its_memory_from_the_pool
)
test_a_server_that_cannot_fit_is_refused_by_the_scheduler = (
    story.test_a_server_that_cannot_fit_is_refused_by_the_scheduler
)
test_a_start_that_the_pool_refuses_leaves_nothing_behind = (
    story.test_a_start_that_the_pool_refuses_leaves_nothing_behind
)
test_a_hard_reboot_makes_the_xml_anew_and_the_memory_comes_from_the_pool = (
    story.test_a_hard_reboot_makes_the_xml_anew_and_the_memory_comes_from_the_pool
)
test_a_deleted_server_gives_all_back = story.test_a_deleted_server_gives_all_back
