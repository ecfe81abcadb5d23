import edu.cmu.meteor.scorer.MeteorConfiguration;
import edu.cmu.meteor.scorer.MeteorScorer;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Collectors;

/**
 * What METEOR's own program answers to SCORE, on all processors: its dictionaries are read once for all threads.
 *
 * <p>Reads the references of an image and its caption, separated by |||, one image a line, from the standard input, and
 * prints the statistics of each. The arguments are those of METEOR's program.
 *
 * <p>Compiled by: javac --release 8 -cp meteor-1.5.jar MeteorStatistics.java
 */
public final class MeteorStatistics {
    public static void main(String[] arguments) throws IOException {
        MeteorScorer loaded = new MeteorScorer(new MeteorConfiguration(Meteor.createPropertiesFromArgs(arguments, 2)));
        ThreadLocal<MeteorScorer> scorer = ThreadLocal.withInitial(() -> new MeteorScorer(loaded));
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in, "UTF-8"));
        List<String> images = input.lines().collect(Collectors.toList());
        List<String> statistics =
                images.parallelStream().map(image -> statistics(scorer.get(), image)).collect(Collectors.toList());
        System.out.println(String.join("\n", statistics));
    }

    private static String statistics(MeteorScorer scorer, String image) {
        List<String> texts = Arrays.stream(image.split("\\|\\|\\|")).map(String::trim).collect(Collectors.toList());
        int last = texts.size() - 1;
        return scorer.getMeteorStats(texts.get(last), new ArrayList<>(texts.subList(0, last))).toString();
    }
}
