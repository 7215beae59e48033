package builtin

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runc/libcontainer"

	"criserver/pkg/wholefile"
)

// withScore is the container as one whose commands get an oom_score_adj. The library gives them what the container was made with, by
// its state file; an update may have changed it since.
func (r *Runtime) withScore(c *libcontainer.Container, id string, score *int) (*libcontainer.Container, error) {
	if had := c.Config().OomScoreAdj; score == nil || had != nil && *had == *score {
		return c, nil
	}
	if err := r.writeScore(id, *score); err != nil {
		return nil, err
	}
	return r.load(id)
}

func (r *Runtime) writeScore(id string, score int) error {
	r.writing.Lock()
	defer r.writing.Unlock()
	path := filepath.Join(r.root, id, "state.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read runtime state: %w", err)
	}
	var state, config map[string]json.RawMessage // all else stays as it is
	if err = json.Unmarshal(data, &state); err == nil {
		err = json.Unmarshal(state["config"], &config)
	}
	if err != nil {
		return fmt.Errorf("decode runtime state: %w", err)
	}
	config["oom_score_adj"] = json.RawMessage(fmt.Sprint(score))
	if state["config"], err = json.Marshal(config); err == nil {
		data, err = json.Marshal(state)
	}
	if err == nil {
		err = wholefile.Write(path, data)
	}
	if err != nil {
		return fmt.Errorf("write runtime state: %w", err)
	}
	return nil
}
