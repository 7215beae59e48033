package ledger

// releaseLevel lets new pods have the SELinux level of one that is not there any more, unless another one has it too, by its own
// wish. The caller holds l.mu.
func (l *Ledger) releaseLevel(st PodStatus) {
	for _, p := range l.pods {
		if p.status.ID != st.ID && p.status.Labels.SameLevel(st.Labels) {
			return
		}
	}
	st.Labels.Release()
}
