package spec

import "github.com/opencontainers/runtime-spec/specs-go"

// setOOMScore sets oom_score_adj, always: else it would be the runtime's own, which is low. Lowering it below that of
// the process that writes it needs CAP_SYS_RESOURCE (proc_pid_oom_score_adj(5)), and start would fail without.
func setOOMScore(s *specs.Spec, _ Pod, c Container) error {
	score := int(c.Resources.OOMScoreAdj)
	if !c.MayLowerOOMScore {
		score = max(score, c.MinOOMScoreAdj)
	}
	s.Process.OOMScoreAdj = &score
	return nil
}
