package cri

import (
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/sandbox"
)

func TestContainerState(t *testing.T) {
	for _, row := range []struct {
		phase    sandbox.ContainerPhase
		finished time.Time
		want     runtimeapi.ContainerState
	}{
		{sandbox.ContainerCreating, time.Time{}, runtimeapi.ContainerState_CONTAINER_CREATED},
		{sandbox.ContainerCreated, time.Time{}, runtimeapi.ContainerState_CONTAINER_CREATED},
		{sandbox.ContainerRunning, time.Time{}, runtimeapi.ContainerState_CONTAINER_RUNNING},
		{sandbox.ContainerExited, time.Unix(1, 0), runtimeapi.ContainerState_CONTAINER_EXITED},
		// What has ended stays so while its removal fails; what has not is the kubelet's to stop and remove.
		{sandbox.ContainerRemoving, time.Unix(1, 0), runtimeapi.ContainerState_CONTAINER_EXITED},
		{sandbox.ContainerRemoving, time.Time{}, runtimeapi.ContainerState_CONTAINER_UNKNOWN},
	} {
		if got := containerState(sandbox.ContainerStatus{Phase: row.phase, FinishedAt: row.finished}); got != row.want {
			t.Errorf("%v, finished at %v: %s, want %s", row.phase, row.finished, got, row.want)
		}
	}
}
