/*
 * K3: faults built in on purpose. A build with -DPCCL_MUTANT=k breaks one rule of the protocol, so that the tests can
 * show that they notice. An ordinary build has none: PC_MUTANT(k) is then the constant false.
 */
#ifndef PC_MUTANT_H
#define PC_MUTANT_H

enum pc_mutant {
    PC_MUTANT_COMMIT_WITHOUT_DONE = 1, /* master: COMMIT although one DONE is missing */
    PC_MUTANT_LOCAL_VERDICT = 2, /* member: success at local completion, without COMMIT */
    PC_MUTANT_OLD_EPOCH = 3, /* member: takes frames of an older epoch as the current one's */
    PC_MUTANT_SEQ_KEPT = 4, /* member: an aborted op that wasn't posted here does not consume its seq */
    PC_MUTANT_NO_UNDO = 5, /* member: abort does not restore the buffer */
    PC_MUTANT_NO_CREDIT = 6, /* member: sends without waiting for READY */
    PC_MUTANT_DEAD_DONE = 7, /* master: waits for the DONE of a removed peer for ever */
    PC_MUTANT_NO_BLOCK_DIGEST = 8, /* member: takes a block of the shared state without checking its digest */
    PC_MUTANT_FOREIGN_DEATH = 9, /* master: a death breaks groups that the dead peer was not in */
    PC_MUTANT_HALF_VOTE = 10, /* master: votes on a step of a broken group count for those who cast them */
    PC_MUTANT_EAGER_WITHOUT_END = 11, /* member: sends eager parts however many of them wait at the other end */
    PC_MUTANT_STEP_UNCOMPARED = 12, /* master: a step counts whatever its members have done in it */
    PC_MUTANT_LATE_VOTE = 13, /* master: a vote on a step that others have given up counts for their next one */
    PC_MUTANT_NO_RECALL = 14 /* member: goes on with memory that a thread of the driver still reads or writes */
};

#ifdef PCCL_MUTANT
#define PC_MUTANT(which) (PCCL_MUTANT == (which))
#else
#define PC_MUTANT(which) 0
#endif

#endif
