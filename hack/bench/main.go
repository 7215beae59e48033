// The bench program compares how fast two CRI runtimes start and remove a pod with one container:
//
//	go run ./hack/bench -n 20 -a unix:///run/criserver/criserver.sock -b unix:///run/containerd/containerd.sock
//
// Runs alternate between the two, so that what else the machine does falls on both. It prints the median
// of each step for both, and the ratio.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/hack/bench/turns"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	n := flags.Int("n", 20, "runs on each runtime")
	warmup := flags.Int("warmup", 2, "runs before those that count")
	a := flags.String("a", "unix:///run/criserver/criserver.sock", "`endpoint` of runtime A")
	b := flags.String("b", "unix:///run/containerd/containerd.sock", "`endpoint` of runtime B")
	image := flags.String("image", "registry.k8s.io/e2e-test-images/busybox:1.29-2", "`image` of the container")
	hostNetwork := flags.Bool("host-network", false, "pods without a network of their own")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	if *n < 1 || *warmup < 0 {
		return fmt.Errorf("-n %d -warmup %d: at least one run is needed", *n, *warmup)
	}
	var sides []*side
	for _, endpoint := range []string{*a, *b} {
		s, err := dial(ctx, endpoint, *image, *hostNetwork)
		if err != nil {
			return err
		}
		defer s.conn.Close()
		sides = append(sides, s)
	}
	if err := turns.Take(sides, *warmup+*n, func(s *side, i int) error {
		if err := s.once(ctx, i, i >= *warmup); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		return nil
	}); err != nil {
		return err
	}
	return report(sides, *n)
}

// side is one runtime, and what was measured on it.
type side struct {
	name        string
	conn        *grpc.ClientConn
	runtime     runtimeapi.RuntimeServiceClient
	image       string
	hostNetwork bool
	times       map[string][]float64 // in ms, by step
}

// steps are in the order in which they happen. "start" is the sum of the first three.
var steps = []string{"RunPodSandbox", "CreateContainer", "StartContainer", "start", "StopContainer", "StopPodSandbox", "RemovePodSandbox"}

func dial(ctx context.Context, endpoint, image string, hostNetwork bool) (*side, error) {
	conn, name, err := turns.Dial(ctx, endpoint)
	if err != nil {
		return nil, err
	}
	s := &side{
		name: name, conn: conn, runtime: runtimeapi.NewRuntimeServiceClient(conn), hostNetwork: hostNetwork,
		image: image, times: map[string][]float64{},
	}
	if _, err := runtimeapi.NewImageServiceClient(conn).PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}}); err != nil {
		conn.Close()
		return nil, fmt.Errorf("pull %s: %w", image, err)
	}
	return s, nil
}

// once starts a pod with a container and removes it again. The times are kept if count is set.
func (s *side) once(ctx context.Context, i int, count bool) error {
	id := fmt.Sprintf("bench-%d-%d", os.Getpid(), i)
	pod := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: id, Namespace: "bench", Uid: id},
		Linux:    &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: s.namespaces()}},
	}
	var podID, containerID string
	took := map[string]time.Duration{}
	measure := func(step string, call func() error) error {
		begin := time.Now()
		err := call()
		took[step] = time.Since(begin)
		if err != nil {
			return fmt.Errorf("%s: %w", step, err)
		}
		return nil
	}
	err := func() error {
		if err := measure("RunPodSandbox", func() error {
			r, err := s.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: pod})
			podID = r.GetPodSandboxId()
			return err
		}); err != nil {
			return err
		}
		if err := measure("CreateContainer", func() error {
			r, err := s.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
				PodSandboxId: podID, SandboxConfig: pod, Config: s.container(),
			})
			containerID = r.GetContainerId()
			return err
		}); err != nil {
			return err
		}
		return measure("StartContainer", func() error {
			_, err := s.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: containerID})
			return err
		})
	}()
	took["start"] = took["RunPodSandbox"] + took["CreateContainer"] + took["StartContainer"]
	if err := errors.Join(err, s.remove(ctx, podID, containerID, measure)); err != nil {
		return err
	}
	for step, d := range took {
		if count {
			s.times[step] = append(s.times[step], float64(d)/float64(time.Millisecond))
		}
	}
	return nil
}

// namespaces are those that the kubelet asks for by default: each container has a PID namespace of its own.
func (s *side) namespaces() *runtimeapi.NamespaceOption {
	n := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	if s.hostNetwork {
		n.Network = runtimeapi.NamespaceMode_NODE
	}
	return n
}

func (s *side) container() *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "main"},
		Image:    &runtimeapi.ImageSpec{Image: s.image},
		Command:  []string{"sleep", "3600"},
		Linux:    &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: s.namespaces()}},
	}
}

// remove takes down what was made, also when the run was interrupted.
func (s *side) remove(ctx context.Context, podID, containerID string, measure func(string, func() error) error) error {
	if podID == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	var errs []error
	if containerID != "" {
		errs = append(errs, measure("StopContainer", func() error {
			// No grace period: pid 1 of a namespace does not get a signal that it does not handle.
			_, err := s.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: containerID, Timeout: 0})
			return err
		}))
	}
	return errors.Join(append(errs,
		measure("StopPodSandbox", func() error {
			_, err := s.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: podID})
			return err
		}),
		measure("RemovePodSandbox", func() error {
			_, err := s.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: podID})
			return err
		}),
	)...)
}

func report(sides []*side, n int) error {
	var names []string
	for _, s := range sides {
		names = append(names, s.name)
	}
	var rows []turns.Row
	for _, step := range steps {
		row := turns.Row{Name: step, Decimals: 1}
		for _, s := range sides {
			row.Values = append(row.Values, turns.Median(s.times[step]))
		}
		rows = append(rows, row)
	}
	return turns.Print(os.Stdout, fmt.Sprintf("median of %d, ms", n), names, rows)
}
