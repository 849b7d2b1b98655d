/*
 * Rings of so many members that the search for the best one takes longer than anybody should wait. A plan is made from
 * what a short search has found; a long one goes on beside the machine, for one group at a time, and a better ring waits
 * for the next topology call. What is found for links that have been measured anew since is dropped, but a ring in use
 * stays unless the short search finds a better one, so that no measurement brings back what was found first.
 */
#include "base/log.h"
#include "proto/master_state.h"

#include <string.h>

void pc_master_drop_search(struct pc_group *group) {
    pc_ring_job_destroy(group->search);
    pc_ring_job_destroy(group->better);
    group->search = group->better = NULL;
    group->searched = false;
}

/* The ring so far, where it is the better one for the links of job too. */
static void compare_kept(const struct pc_ring_job *kept, struct pc_ring_job *job) {
    if (kept == NULL || kept->request.n != job->request.n) return;
    struct pc_ring_quality quality = {.widest = job->quality.widest};
    pc_ring_judge(&job->request, kept->order, &quality);
    if (!pc_ring_better(&quality, &job->quality)) return;
    job->quality = quality;
    memcpy(job->order, kept->order, job->request.n * sizeof *job->order);
}

bool pc_master_search_ring(struct pc_master *master, struct pc_group *group, const struct pc_ring_request *request,
                           uint32_t *ring) {
    if (group->search == NULL || !pc_ring_job_asks(group->search, request)) {
        struct pc_ring_job *job = pc_ring_job_create(request, request->budget);
        if (job != NULL) pc_ring_job_run(job);
        if (job == NULL || !job->found) {
            pc_ring_job_destroy(job);
            pc_master_drop_search(group);
            return false;
        }
        compare_kept(group->search, job);
        pc_master_drop_search(group);
        job->serial = ++master->next_search;
        group->search = job;
    }
    memcpy(ring, group->search->order, request->n * sizeof *ring);
    return true;
}

bool pc_master_adopt_rings(struct pc_master *master) {
    bool any = false;
    for (struct pc_list *node = master->groups.next; node != &master->groups; node = node->next) {
        struct pc_group *group = PC_LIST_ENTRY(node, struct pc_group, node);
        if (group->better == NULL) continue;
        const struct pc_ring_quality *before = &group->search->quality, *after = &group->better->quality;
        PC_LOG(pcclLogInfo, "%s: a better ring of %u: bottleneck %llu after %llu bytes/ms, once round %llu after %llu us",
               master->machine.name, (unsigned)group->search->request.n, (unsigned long long)after->bottleneck,
               (unsigned long long)before->bottleneck, (unsigned long long)after->latency_ns / 1000,
               (unsigned long long)before->latency_ns / 1000);
        pc_ring_job_destroy(group->search);
        group->search = group->better;
        group->better = NULL;
        group->replan = any = true;
    }
    return any;
}

void pc_master_search_on(struct pc_master *master) {
    if (master->searching || master->ending || master->config.search_steps == 0) return;
    if (master->machine.actions.failed) return;
    for (struct pc_list *node = master->groups.next; node != &master->groups; node = node->next) {
        struct pc_group *group = PC_LIST_ENTRY(node, struct pc_group, node);
        const struct pc_ring_job *first = group->search;
        if (first == NULL || group->searched || pc_ring_job_exact(first)) continue;
        struct pc_ring_job *job = pc_ring_job_create(&first->request, master->config.search_steps);
        if (job == NULL) return; /* the ring that there is will do */
        job->serial = first->serial;
        struct pc_action *action = pc_actions_add(&master->machine.actions, PC_ACTION_SEARCH);
        group->searched = master->searching = true;
        action->job = job;
        PC_LOG(pcclLogDebug, "%s: a search of %llu steps for a better ring of %u", master->machine.name,
               (unsigned long long)job->request.budget, (unsigned)job->request.n);
        if (master->machine.actions.failed) pc_ring_job_destroy(job); /* nobody reads it */
        return;
    }
}

void pc_master_searched(struct pc_master *master, struct pc_ring_job *job) {
    master->searching = false;
    for (struct pc_list *node = master->groups.next; node != &master->groups && job != NULL; node = node->next) {
        struct pc_group *group = PC_LIST_ENTRY(node, struct pc_group, node);
        if (group->search == NULL || group->search->serial != job->serial) continue;
        if (!job->found || !pc_ring_better(&job->quality, &group->search->quality)) continue;
        group->better = job;
        job = NULL;
    }
    pc_ring_job_destroy(job);
    pc_master_search_on(master);
}
